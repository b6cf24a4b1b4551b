"""Notebooks under pytest run at smoke scale unless RLHF_SCALE says otherwise."""

import os

os.environ.setdefault("RLHF_SCALE", "smoke")
