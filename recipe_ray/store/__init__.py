"""The store: artifacts, manifests, claims and result rows, on a folder or an object store."""
