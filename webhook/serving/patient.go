package serving

import (
	"crypto/tls"
	"log"
	"net"
	"time"
)

// patientListener accepts connections that wait for their first request as long as for any other.
type patientListener struct {
	net.Listener // of TLS
	server       *Server
}

func (l patientListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &patientConn{Conn: c.(*tls.Conn), server: l.server}, nil
}

// patientConn waits for its first request as long as for any other. To net/http (server.go, readRequest) that request begins with
// the connection: its ReadTimeout would end one that is not needed yet. So that is the time limit of the handshake only, and the
// first read sets those of the wait, and of the request once there is a part of it.
type patientConn struct {
	*tls.Conn
	server *Server
	begun  bool // only one goroutine reads at a time
}

func (c *patientConn) Read(b []byte) (int, error) {
	if c.begun {
		return c.Conn.Read(b)
	}
	c.begun = true
	if err := c.Handshake(); err != nil {
		log.Printf("webhook server: TLS handshake with %s: %v", c.RemoteAddr(), err) // as net/http does where it makes it
		return 0, err
	}
	if err := c.SetReadDeadline(time.Now().Add(c.server.idleTimeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if err != nil {
		return n, err
	}
	return n, c.SetReadDeadline(time.Now().Add(c.server.readTimeout))
}
