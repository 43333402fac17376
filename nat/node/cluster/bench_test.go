package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/nat/node/nodetest"
)

const (
	residentAddresses = 200
	// idleFor is how long an idle agent is looked at: two of its regular rounds.
	idleFor = 61 * time.Second
)

// BenchmarkResident is the built program, bin/floatip-agent, on a node with 200 addresses, with a real API server and
// sidecars: its memory, where the aim is 35 MiB, and the processor's time that it takes while nothing happens.
func BenchmarkResident(bb *testing.B) {
	binary, err := filepath.Abs("../../../bin/floatip-agent")
	if err != nil {
		bb.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil {
		bb.Fatalf("%v: run make build", err)
	}
	p := newPlace(bb)
	a := netip.MustParseAddr("192.168.100.10")
	for n := range residentAddresses {
		for a = a.Next(); a.String() == nodetest.LANHost; a = a.Next() {
		}
		v := &vm{Pod: &nodetest.Pod{Namespace: nodetest.NewNamespace(bb)}, t: bb, address: a}
		p.addObjects(n, v)
		v.startSidecar()
	}
	pid := p.startProgram(binary)
	p.until("all addresses to be announced", func() bool {
		var list v1alpha1.FloatingIPList
		if err := p.api.List(context.Background(), &list); err != nil {
			bb.Fatal(err)
		}
		announced := 0
		for _, f := range list.Items {
			if meta.IsStatusConditionTrue(f.Status.Conditions, v1alpha1.ConditionAnnounced) {
				announced++
			}
		}
		return announced == residentAddresses
	})
	used := processorTicks(bb, pid)
	time.Sleep(idleFor)
	idle := float64(processorTicks(bb, pid)-used) * 10 / idleFor.Seconds() // a tick is 10 ms (proc_pid_stat(5), USER_HZ)
	bb.ReportMetric(0, "ns/op")                                            // of no meaning
	bb.ReportMetric(float64(resident(bb, pid))/1024, "MiB")
	bb.ReportMetric(idle, "idle-cpu-ms/s")
}

// startProgram starts the agent on the node, and ends it with the test.
func (p *place) startProgram(binary string) (pid int) {
	p.t.Helper()
	road := newRoad(p.t, p.config, func() (l net.Listener, err error) {
		p.node.Do(func() error {
			l, err = net.Listen("tcp", "127.0.0.1:0")
			return err
		})
		return l, err
	})
	dir := p.t.TempDir()
	kubeconfig, log := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "log")
	const name = "place"
	config := api.NewConfig()
	config.Clusters[name] = &api.Cluster{Server: road.host(), CertificateAuthorityData: p.config.CAData}
	config.AuthInfos[name] = &api.AuthInfo{ClientCertificateData: p.config.CertData, ClientKeyData: p.config.KeyData}
	config.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		p.t.Fatal(err)
	}
	out, err := os.Create(log)
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), p.node.File.Fd()), binary,
		"--kubeconfig="+kubeconfig, "--node-name=n1", "--kubelet-dir="+p.kubelet, "--listen=")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if p.t.Failed() {
			said, _ := os.ReadFile(log)
			p.t.Logf("the agent said:\n%s", said[max(0, len(said)-4000):])
		}
	})
	return cmd.Process.Pid // nsenter becomes the program
}

// resident is the memory of a process in KiB.
func resident(t testing.TB, pid int) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); fields[0] == "VmRSS:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Fatalf("process %d has no memory", pid)
	return 0
}

// processorTicks is the time of the processor that a process has used, its own and the kernel's for it.
func processorTicks(t testing.TB, pid int) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	ticks := 0
	for _, field := range fields[11:13] { // utime and stime, the 14th and 15th
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return ticks
}
