// Package serving is the HTTPS server that the API server calls: TLS 1.3, connections that outlive the API server's own idle
// time, handshakes that let requests go first, and an end that answers what has begun.
package serving
