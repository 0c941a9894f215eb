from eqsat import optimize, tensor
from eqsat.numpy_like import gelu

x = tensor("x", (1024, 1024), "f32")
y = tensor("y", (1024, 1024), "f32")
r = tensor("r", (1024, 1024), "f32")

best = optimize(gelu(x, approximate="tanh") * y + r, target="cpu")  # searches, verifies, measures
print(best)  # the receipt: what was chosen, how it was found, what was checked, what was not
best.save("gelu_mul_add")  # eqsat.load("gelu_mul_add")(x, y, r) runs it on arrays
