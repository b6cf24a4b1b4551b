"""The command line without the doctor, which takes longer than the few steps of a test: a script for `accelerate launch`."""

import sys

from rlhf_lib import doctor, stages
from rlhf_lib.__main__ import main

stages.run_doctor = lambda *_: doctor.Report([])
sys.exit(main())
