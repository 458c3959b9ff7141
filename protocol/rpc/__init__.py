"""The gRPC shell of the protocol: the one package that imports grpc. SPEC 9."""

import os

# gRPC's core writes its own lines to stderr, also for what we report as one clear error. It reads this when it loads;
# an operator who wants those lines sets the variable.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
