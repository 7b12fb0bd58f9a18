"""Roll-out of experiments on this machine: servers of the arms behind the gateway, and the commands that start, change and end them."""
