"""Scene presets, the procedural toybox and object packs."""
