"""From a softmax model to a hybrid one: align, distill, layer sensitivity, what a run takes."""
