"""Prints the option with which pip takes torch's build for the processor, where the plain one would bring gigabytes of CUDA.

Nothing is printed where it is not wanted: on a system whose plain build is that one, with a GPU, where pip already has other places to look
in, and without network. `make` uses it; TORCH_CPU_INDEX names a mirror.
"""

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

INDEX = "https://download.pytorch.org/whl/cpu"
OWN_PLACES = ("index-url", "find-links", "no-index")


def is_configured(listed: str) -> bool:
    """Whether `pip config list` names places of the user's own."""
    names = [line.partition("=")[0].removeprefix(":env:.").rpartition(".")[2] for line in listed.splitlines()]
    return any(name.endswith(OWN_PLACES) for name in names)


def answers(index: str) -> bool:
    """Whether the index can be reached within five seconds."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=5) as page:  # noqa: S310 - a fixed address, or the user's own
            return bool(page.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def option(*, system: str, has_gpu: bool, listed: str, index: str = INDEX) -> str:
    """The option of pip, or nothing."""
    if system != "linux" or has_gpu or is_configured(listed) or not answers(index):
        return ""
    return f"--extra-index-url {index}"


if __name__ == "__main__":
    pip = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    gpu = shutil.which("nvidia-smi") is not None or os.path.exists("/dev/nvidia0")  # noqa: PTH110
    print(option(system=sys.platform, has_gpu=gpu, listed=pip, index=os.environ.get("TORCH_CPU_INDEX", INDEX)))  # noqa: T201
