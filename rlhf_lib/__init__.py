"""RLHF from first principles: SFT, reward model, PPO and honest evaluation, in code short enough to read."""

import logging
import os

# Waiting threads spin for a moment and then sleep. Spinning on, as they do by default, is up to 10 times slower on a busy
# two-core machine; sleeping at once is 8 % slower on an idle one. OpenMP reads this once: import rlhf_lib before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it recommends a package of kernels: no error
