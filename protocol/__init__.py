"""Who says what to whom: sans-I/O sessions, signed documents, codec. `protocol.rpc` is the gRPC shell."""
