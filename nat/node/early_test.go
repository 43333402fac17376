package node

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"floatip.io/floatip/nat/node/nodetest"
)

// TestEarlyPackets: a guest that is up before its leg sends to a host beyond, again and again from one socket, and nobody
// answers: it goes out by the cluster, under its own address, since somebody has flushed KubeVirt's rules, which nobody writes
// again. When the leg is there the same socket is answered under the floating address, in both families; also when the way to
// the leg was taken away and is put back.
func TestEarlyPackets(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.dualStack()
	v := b.addVM(1, fifty.String(), fifty6.String())
	v.Run("nft delete chain ip nat postrouting", "nft delete chain ip6 nat postrouting")
	b.world.Cluster.Run("ip route add blackhole "+nodetest.Beyond, "ip -6 route add blackhole "+nodetest.Beyond6)
	tracked := func() int {
		return v.Flows(netip.MustParseAddr(nodetest.Beyond)) + v.Flows(netip.MustParseAddr(nodetest.Beyond6))
	}
	insistent := func(port string) (all []net.Conn) {
		for _, to := range []string{nodetest.Beyond, nodetest.Beyond6} {
			before := tracked()
			all = append(all, insist(t, b.world.Host, v.Guest, net.JoinHostPort(to, port)))
			b.await("a connection under the pod's address", func() bool { return tracked() > before })
		}
		return all
	}
	answered := func(since string, all []net.Conn) {
		t.Helper()
		for _, conn := range all {
			conn.SetReadDeadline(time.Now().Add(patience))
			if _, err := conn.Read(make([]byte, 16)); err != nil {
				t.Fatalf("what goes to %s since before %s is not answered: %v", conn.RemoteAddr(), since, err)
			}
		}
	}
	early := insistent("7")
	b.start()
	b.publish()
	b.awaitReport("ready", ready(fifty.String(), fifty6.String()))
	answered("the leg was there", early)

	v.Run("ip rule del fwmark 0x77", "ip -6 rule del fwmark 0x77")
	early = insistent("8")
	b.agent.Recheck()
	answered("the way to the leg was repaired", early)
}

// insist sends from one socket of the client every millisecond, whatever comes of it. The server would answer.
func insist(t *testing.T, server, client *nodetest.Namespace, address string) (conn net.Conn) {
	t.Helper()
	var l net.PacketConn
	server.Do(func() (err error) {
		l, err = net.ListenPacket("udp", address)
		return err
	})
	client.Do(func() (err error) {
		conn, err = net.Dial("udp", address)
		return err
	})
	t.Cleanup(func() { l.Close(); conn.Close() })
	go func() {
		for buf := make([]byte, 16); ; {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = l.WriteTo(buf[:n], from)
		}
	}()
	go func() {
		for ticker := time.NewTicker(time.Millisecond); t.Context().Err() == nil; <-ticker.C {
			_, _ = conn.Write([]byte("?"))
		}
	}()
	return conn
}
