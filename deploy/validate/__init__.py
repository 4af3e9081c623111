"""`make validate-deploy`: finds mistakes in cluster.yaml, deploy/ and serve_configs/ without a cluster or a cloud."""
