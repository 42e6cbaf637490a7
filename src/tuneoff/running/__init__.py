"""Study to runs to records, on one machine or a cluster."""
