"""RAW file <-> mosaic and Sensor; the gRPC client; the server's launcher; the `exposure` command."""
