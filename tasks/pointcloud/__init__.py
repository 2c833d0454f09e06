"""Point-cloud classification: DGCNN on ModelNet40, or on embedded clouds in its format."""
