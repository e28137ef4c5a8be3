"""facevae: a reproducible pipeline that trains a variational autoencoder on faces."""
