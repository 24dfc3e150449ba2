"""All that knows pytest: options, hooks, items, fixtures and the reporter. The entry point of the plugin; it imports nothing heavy."""

pytest_plugins = (
    "pytest_diffusion.plugin.hooks",
    "pytest_diffusion.plugin.fixtures.model",
    "pytest_diffusion.plugin.fixtures.lenses",
)
