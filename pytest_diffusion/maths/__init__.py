"""Maths of the metrics: functions of tensors, computed in float64, without diffusers and without global random state."""
