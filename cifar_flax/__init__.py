"""A laboratory for comparing small image-classification architectures on CIFAR-10."""
