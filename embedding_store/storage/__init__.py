"""All access to stored files: what a store needs of a disk or an object store, and both of them."""
