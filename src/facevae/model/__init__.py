"""The variational autoencoder: network, objective, checkpoint."""
