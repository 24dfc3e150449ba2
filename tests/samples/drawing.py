"""Processes that draw samples into a store, for tests that kill them: forked from a server that has loaded torch and diffusers once."""

import multiprocessing
import resource
import signal

import torch
from diffusers import StableDiffusionPipeline  # noqa: F401 - loaded in the server

from pytest_diffusion.config import claims
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.samples import generate

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])


class Drawing:
    """A process that draws 40 samples in shards of 4; `file_size` is the most that it may write to one file."""

    def __init__(self, cache, *, lease=30.0, file_size=None):
        self._told, told = _SERVER.Pipe(duplex=False)
        self._process = _SERVER.Process(target=_draw, args=(str(cache), lease, file_size, told), daemon=True)
        self._process.start()
        told.close()

    def wait_until_loaded(self):
        """Wait until it begins to draw."""
        assert self._told.recv() == "ready"

    def kill(self):
        """Kill it, as SIGKILL does at any moment."""
        self._process.kill()
        self._process.join()

    def end(self, seconds=None):
        """Wait for its end, and return what it told: "ready", and the number of samples that it drew or its error."""
        self._process.join(seconds)
        told = []
        while self._told.poll():
            try:
                told.append(self._told.recv())
            except EOFError:
                break
        return told


def _draw(cache, lease, file_size, tell):
    torch.set_num_threads(1)
    generate.SHARD_SIZE, claims.LEASE = 4, lease
    settings = Settings(model="demo", device="cpu", num_samples=40, steps=2, guidance_scale=4.0, batch_size=2, cache_dir=cache)
    pipeline = load_pipeline(settings)
    tell.send("ready")
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    try:
        drawn = generate.generate_samples(pipeline, ["a red circle", "a blue square", "a green cross"], settings).generated
    except Exception as error:
        drawn = str(error)
    tell.send(drawn)
