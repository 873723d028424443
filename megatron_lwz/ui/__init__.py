"""`lwz ui`: a local page to watch runs and read rollouts. It only reads the journal and the metrics, and loads no torch."""
