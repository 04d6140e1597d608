"""ModelSpec × mode × SoC × target → artifact: checkpoint, recipe, calibration, lowering, cache, limits."""
