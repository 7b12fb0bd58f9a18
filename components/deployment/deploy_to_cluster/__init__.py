"""The step ``deploy_to_cluster``: a packaged version becomes a canary in a cluster."""
