"""The nearest centroid of every point, exactly: tiles of points against tiles of centroids."""
