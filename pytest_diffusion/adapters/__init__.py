"""Everything that knows diffusers and transformers, asked by capability and not by class name."""
