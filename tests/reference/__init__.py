"""Independent references: what Graftwerk's results are compared with. Nothing here imports Graftwerk."""
