package admission

import (
	"io"
	"net"
	"sync"
	"time"

	"floatip.io/floatip/test/rig/process"
)

// relay passes TCP connections on, and can withhold or delay what the server answers. What clients send always arrives.
type relay struct {
	to    string
	netns string

	mu    sync.Mutex
	held  chan struct{} // not nil while answers are withheld; closed to let them go
	delay time.Duration
}

// newRelay listens on an address inside of a network namespace until the end of the program.
func newRelay(netns, listen, to string) (*relay, error) {
	r := &relay{to: to, netns: netns}
	var listener net.Listener
	err := process.InNetNS(netns, func() (err error) {
		listener, err = net.Listen("tcp", listen)
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go r.pass(client)
		}
	}()
	return r, nil
}

func (r *relay) pass(client net.Conn) {
	defer client.Close()
	var server net.Conn
	err := process.InNetNS(r.netns, func() (err error) {
		server, err = net.Dial("tcp", r.to)
		return err
	})
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		io.Copy(server, client)
		server.Close()
	}()
	buffer := make([]byte, 32<<10)
	for {
		n, err := server.Read(buffer)
		if n > 0 {
			r.wait()
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait returns when an answer may go on.
func (r *relay) wait() {
	r.mu.Lock()
	held, delay := r.held, r.delay
	r.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	if held != nil {
		<-held
	}
}

// hold withholds answers until release is called, which may be repeated.
func (r *relay) hold() (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := make(chan struct{})
	r.held = held
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.held = nil
		close(held)
	})
}

// slow delays each answer.
func (r *relay) slow(delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay = delay
}
