package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/test/lab"
)

// Sockets here block and are used by system calls alone: the runtime's poller would cost more than the path that is
// measured.

// window is how long one sample takes. Many short ones meet the same neighbours as each other, a few long ones do not.
const window = 10 * time.Millisecond

// answerTime bounds a wait of a socket: after it a lost packet is an error, not a hang.
const answerTime = 2 * time.Second

// onOneCPU keeps the calling thread, which must end with its goroutine, on the last processor that it may use: whether
// the scheduler wakes the other end on the same processor or on another changes a round trip by half.
func onOneCPU() error {
	var allowed, last unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return err
	}
	for cpu, left := 0, allowed.Count(); left > 0; cpu++ {
		if allowed.IsSet(cpu) {
			last.Zero()
			last.Set(cpu)
			left--
		}
	}
	return unix.SchedSetaffinity(0, &last)
}

// Ports of the servers in each guest.
const (
	portEcho = 5000 + iota
	portConnect
	portSink
	portSmall
)

// measure is one kind of traffic.
type measure struct {
	name string
	unit string
	// serve starts the other end in the guest.
	serve func(b *testing.B, guest *lab.Namespace)
	// sample drives the path for window and returns units per second of processor time.
	sample func(client *lab.Namespace, to netip.Addr) (float64, error)
}

var measures = []measure{
	{"TCP round trips", "1/s", serveTCPEcho, tcpRoundTrips},
	{"UDP round trips", "1/s", serveUDPEcho, udpRoundTrips},
	{"small packets", "1/s", serveSmall, smallPackets},
	{"new TCP connections", "1/s", serveConnects, connects},
	{"TCP throughput", "Gbit/s", serveSink, throughput},
}

// socket opens a blocking socket whose waits are bounded.
func socket(kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(int64(answerTime))
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	if kind == unix.SOCK_STREAM {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(answerTime.Milliseconds())))
	}
	return fd, err
}

// address writes IPv4 as a mapped address, for one kind of socket.
func address(a netip.Addr, port int) unix.Sockaddr {
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

// listen opens a server's socket in a guest and gives it to serve, on a thread of its own, until the benchmark ends.
func listen(b *testing.B, guest *lab.Namespace, kind, port int, serve func(fd int)) {
	b.Helper()
	fd := -1
	err := guest.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Bind(fd, address(netip.IPv6Unspecified(), port)); err != nil || kind == unix.SOCK_DGRAM {
			return err
		}
		return unix.Listen(fd, 1024)
	})
	if err != nil {
		b.Fatalf("serve port %d: %v", port, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		if onOneCPU() == nil {
			serve(fd)
		}
	}()
	b.Cleanup(func() { // a shut socket wakes the server up
		unix.Shutdown(fd, unix.SHUT_RDWR)
		<-ended
		unix.Close(fd)
	})
}

func serveTCPEcho(b *testing.B, guest *lab.Namespace) {
	listen(b, guest, unix.SOCK_STREAM, portEcho, eachConnection(func(fd int) {
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		buf := make([]byte, 1)
		for n, err := unix.Read(fd, buf); err == nil && n > 0; n, err = unix.Read(fd, buf) {
			if _, err := unix.Write(fd, buf[:n]); err != nil {
				return
			}
		}
	}))
}

func serveUDPEcho(b *testing.B, guest *lab.Namespace) {
	listen(b, guest, unix.SOCK_DGRAM, portEcho, func(fd int) {
		buf := make([]byte, 64)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil || from == nil { // shut
				return
			}
			if err := unix.Sendto(fd, buf[:n], 0, from); err != nil {
				return
			}
		}
	})
}

// burst is how many small packets go to the guest for one that comes back: few enough for any socket's buffer.
const burst = 32

// serveSmall answers the last packet of each burst.
func serveSmall(b *testing.B, guest *lab.Namespace) {
	listen(b, guest, unix.SOCK_DGRAM, portSmall, func(fd int) {
		buf := make([]byte, 64)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil || from == nil { // shut
				return
			}
			if buf[0] == 0 {
				continue
			}
			if err := unix.Sendto(fd, buf[:n], 0, from); err != nil {
				return
			}
		}
	})
}

func smallPackets(client *lab.Namespace, to netip.Addr) (rate float64, err error) {
	err = connected(client, unix.SOCK_DGRAM, to, portSmall, func(fd int) (err error) {
		packet, last, answer := make([]byte, 18), make([]byte, 18), make([]byte, 64) // 64 bytes on an Ethernet, IPv4
		last[0] = 1
		rate, err = during(func() (float64, error) {
			for range burst - 1 {
				if _, err := unix.Write(fd, packet); err != nil {
					return 0, err
				}
			}
			if _, err := unix.Write(fd, last); err != nil {
				return 0, err
			}
			return burst, read(fd, answer)
		})
		return err
	})
	return rate, err
}

func serveConnects(b *testing.B, guest *lab.Namespace) {
	listen(b, guest, unix.SOCK_STREAM, portConnect, eachConnection(func(int) {}))
}

func serveSink(b *testing.B, guest *lab.Namespace) {
	listen(b, guest, unix.SOCK_STREAM, portSink, eachConnection(func(fd int) {
		buf := make([]byte, 256<<10)
		for n, err := unix.Read(fd, buf); err == nil && n > 0; n, err = unix.Read(fd, buf) {
			continue
		}
	}))
}

// eachConnection serves one connection after the other: there is one client.
func eachConnection(serve func(fd int)) func(int) {
	return func(listener int) {
		for {
			fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			if errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return
			}
			serve(fd)
			unix.Close(fd)
		}
	}
}

// during repeats step for window and returns the sum of what it returned per second of processor time, that of client
// and server together: both are on one processor, where one of them always runs, and so whatever else runs there too does
// not count.
func during(step func() (float64, error)) (float64, error) {
	sum, began, used := 0.0, time.Now(), processorTime()
	for time.Since(began) < window {
		n, err := step()
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum / (processorTime() - used).Seconds(), nil
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		panic("bench: getrusage: " + err.Error())
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// connected runs f with a connected socket of the client.
func connected(client *lab.Namespace, kind int, to netip.Addr, port int, f func(fd int) error) error {
	return client.Do(func() error {
		fd, err := socket(kind)
		if err = errors.Join(err, onOneCPU()); err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, address(to, port)); err != nil {
			return fmt.Errorf("connect to %s port %d: %w", to, port, err)
		}
		return f(fd)
	})
}

// read waits on when the runtime's signals interrupt it.
func read(fd int, buf []byte) error {
	for {
		if _, err := unix.Read(fd, buf); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func roundTrips(client *lab.Namespace, kind int, to netip.Addr) (rate float64, err error) {
	err = connected(client, kind, to, portEcho, func(fd int) (err error) {
		buf := []byte{1}
		rate, err = during(func() (float64, error) {
			if _, err := unix.Write(fd, buf); err != nil {
				return 0, err
			}
			return 1, read(fd, buf)
		})
		return err
	})
	return rate, err
}

func tcpRoundTrips(client *lab.Namespace, to netip.Addr) (float64, error) {
	return roundTrips(client, unix.SOCK_STREAM, to)
}

func udpRoundTrips(client *lab.Namespace, to netip.Addr) (float64, error) {
	return roundTrips(client, unix.SOCK_DGRAM, to)
}

// connects closes each connection by a reset: none lingers, so that ports are never short.
func connects(client *lab.Namespace, to netip.Addr) (rate float64, err error) {
	server := address(to, portConnect)
	err = client.Do(func() (err error) {
		if err := onOneCPU(); err != nil {
			return err
		}
		rate, err = during(func() (float64, error) {
			fd, err := socket(unix.SOCK_STREAM)
			if err != nil {
				return 0, err
			}
			err = errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
				unix.Connect(fd, server))
			return 1, errors.Join(err, unix.Close(fd))
		})
		return err
	})
	return rate, err
}

// throughput is of what the client could hand to its socket, whose buffer is small beside the sum.
func throughput(client *lab.Namespace, to netip.Addr) (rate float64, err error) {
	err = connected(client, unix.SOCK_STREAM, to, portSink, func(fd int) (err error) {
		buf := make([]byte, 128<<10)
		rate, err = during(func() (float64, error) {
			n, err := unix.Write(fd, buf)
			return float64(n) * 8 / 1e9, err
		})
		return err
	})
	return rate, err
}
