"""Every benchmark and study, one after the other, each in a process of its own."""

import subprocess
import sys

for module in ("bench_em_pass", "bench_fit", "study_starts", "study_null", "study_panels"):
    print(f"== {module}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{module}"], check=True)
