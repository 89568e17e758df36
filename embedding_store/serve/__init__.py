"""Tables that follow what is published while their process serves."""
