"""Quality, measured: texts and profiles in, results with intervals out."""
