package nodetest

import (
	"fmt"
	"io"
	"net"
	"time"
)

// Serve answers each TCP connection to address inside the namespace with "<who> sees <address of the client>".
func (n *Namespace) Serve(who, address string) {
	n.t.Helper()
	l := n.Listen(address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s sees %s", who, host)
			c.Close()
		}
	}()
}

// Ask connects from the namespace to address and returns what Serve says there.
func (n *Namespace) Ask(address string, patience time.Duration) (string, error) {
	c, err := n.Dial(address, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	said, err := io.ReadAll(c)
	return string(said), err
}

// Dial opens a TCP connection from the namespace.
func (n *Namespace) Dial(address string, patience time.Duration) (net.Conn, error) {
	var c net.Conn
	err := n.try(func() (err error) {
		c, err = net.DialTimeout("tcp", address, patience)
		return err
	})
	return c, err
}
