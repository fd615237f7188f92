"""Ground floor: pure functions of numbers and JSON values. No files, no clock, no torch."""
