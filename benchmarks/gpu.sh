#!/usr/bin/env bash
# Everything a GPU is needed for, from one command: correctness of every kernel on the device, benchmarks, sanitizer.
#
#   bash benchmarks/gpu.sh [--part correctness|bench|sanitize|cuda]... [--only em_pass] [--wheels FOLDER]
#
# Needs what the machine has: Python with torch and triton, numpy. No network. Python packages that are missing (pytest,
# pytest-xdist) are installed from the wheels in --wheels, if there are any. Each part has a time limit of its own; the
# first two take less than ten minutes together. Results go to benchmarks/results/<device>.json. `cuda` is the opt-in EM pass of
# csrc/cuda on a Hopper GPU: compiled there unless maxmin_kernels/_C.abi3.so was brought along, tried, timed step by step, sanitized.
set -uo pipefail
cd "$(dirname "$0")/.."

parts=() only="" wheels="benchmarks/wheels"
while [ $# -gt 0 ]; do
  case "$1" in
    --part) parts+=("$2"); shift 2 ;;
    --only) only="$2"; shift 2 ;;
    --wheels) wheels="$2"; shift 2 ;;
    *) sed -n '2,10p' "$0"; exit 2 ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(correctness bench)

python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu.sh: no GPU that torch can use" >&2
  exit 2
fi
if compgen -G "$wheels/*.whl" > /dev/null; then
  "$python" -m pip install -q --no-index --find-links "$wheels" "$wheels"/*.whl || exit 1
fi
"$python" - <<'PY'
import torch, triton
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
PY

status=0
run() {  # run NAME LIMIT COMMAND...: one part, whose failure does not stop the others
  local name="$1" limit="$2" began=$SECONDS
  shift 2
  echo "== $name"
  if timeout "$limit" "$@"; then
    echo "== $name: done in $((SECONDS - began)) s"
  else
    status=1
    echo "== $name: FAILED ($?) after $((SECONDS - began)) s" >&2
  fi
}

for part in "${parts[@]}"; do
  case "$part" in
    correctness)
      # Triton's cache starts empty: kernels are compiled side by side where xdist is there.
      workers=()
      "$python" -c 'import xdist' 2> /dev/null && workers=(-n "$(($(nproc) < 12 ? $(nproc) : 12))")
      filter=()
      [ -z "$only" ] || filter=(-k "$only")
      run correctness 330 "$python" -m pytest -q -m gpu "${workers[@]}" "${filter[@]}" tests
      ;;
    bench)
      run bench 240 "$python" -m benchmarks.bench_gpu ${only:+--only "$only"}
      [ -n "$only" ] || run fit 120 "$python" -m benchmarks.bench_gpu_fit
      ;;
    sanitize)
      for tool in memcheck racecheck; do
        run "$tool" 300 compute-sanitizer --tool "$tool" --error-exitcode 1 \
          "$python" -m benchmarks.bench_gpu --smoke ${only:+--only "$only"}
      done
      ;;
    cuda)
      if ! "$python" -c 'from maxmin_kernels import _cuda; import sys; sys.exit(bool(_cuda.load()))'; then
        run cuda-build 300 env MAXMIN_CUDA=1 "$python" setup.py -q build_ext --inplace
      fi
      run cuda 300 "$python" -m pytest -q -m gpu tests/kernels/cuda
      run cuda-bench 240 "$python" -m benchmarks.bench_gpu_cuda
      for tool in memcheck racecheck synccheck; do
        run "cuda-$tool" 300 compute-sanitizer --tool "$tool" --error-exitcode 1 \
          "$python" -m pytest -q -m gpu tests/kernels/cuda -k "second_stream"
      done
      ;;
    *) echo "gpu.sh: --part: expected correctness, bench, sanitize or cuda, got $part" >&2; exit 2 ;;
  esac
done
exit $status
