"""All that knows pytest: options, hooks, items, fixtures and the reporter. The plugin's entry point; it imports nothing heavy."""

pytest_plugins = (
    "pytest_diffusion.plugin.hooks",
    "pytest_diffusion.plugin.fixtures.model",
    "pytest_diffusion.plugin.fixtures.samples",
    "pytest_diffusion.plugin.fixtures.ready",
    "pytest_diffusion.plugin.fixtures.lenses",
    "pytest_diffusion.plugin.fixtures.paired",
    "pytest_diffusion.plugin.fixtures.selftest",
    "pytest_diffusion.plugin.fixtures.report",
)
