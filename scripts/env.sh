# Sourced by every script of this folder: where the project is, and which tools it takes.
# Tools of the project's own (.tools/bin, made by setup.sh) come before those of the machine.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PATH="$ROOT/.tools/bin:$PATH:$HOME/.cargo/bin"
# CUDA's compilers, when setup.sh has put them there and nobody named others.
if [ -z "${CUDA_HOME:-}" ] && [ -x "$ROOT/.tools/cuda/nvidia/cu13/bin/nvcc" ]; then
    export CUDA_HOME="$ROOT/.tools/cuda/nvidia/cu13"
fi
JOBS="$(nproc 2>/dev/null || echo 2)"

say() { printf '== %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
