package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"floatip.io/floatip/test/rig/process"
)

// Options say where the control plane runs. Dir, BinDir, NetNS, Advertise and Group are required.
type Options struct {
	// Dir gets certificates, kubeconfigs, logs and etcd's data. It is made if needed and not removed.
	Dir string
	// BinDir holds the programs, as `make rig-binaries` leaves them.
	BinDir string
	// NetNS is the path of the network namespace of the control plane. Its loopback is up.
	NetNS string
	// Advertise is an address of that namespace under which nodes and pods reach the API server, port 6443.
	Advertise netip.Addr
	// ServiceCIDR is where Services get their addresses. Defaults to 10.96.0.0/12.
	ServiceCIDR netip.Prefix
	// PodCIDR is what is divided among the Node objects as spec.podCIDR. Defaults to 100.0.0.0/16.
	PodCIDR netip.Prefix
	// EtcdURL is where the API server looks for etcd. Defaults to etcd itself, http://127.0.0.1:2379; a test may stand
	// in between.
	EtcdURL string
	// WebhookHost is a webhook's name, such as "floatip-webhook.floatip-system.svc", to which the API server presents a client
	// certificate. Empty for none.
	WebhookHost string
	// PodSecurity is the level that the API server enforces in namespaces that have no label. Empty for none.
	PodSecurity string
	// Group starts the processes, ends them, and decides whether they survive the rig.
	Group *process.Group
	// Progress hears what is started and waited for. Nil is silence.
	Progress process.Progress
}

// The API server's port on all addresses of the namespace, as kubeadm chooses it.
const apiServerPort = 6443

var (
	defaultServiceCIDR = netip.MustParsePrefix("10.96.0.0/12")
	defaultPodCIDR     = netip.MustParsePrefix("100.0.0.0/16")
)

// withDefaults fills in what was left open and refuses what cannot work.
func (o Options) withDefaults() (Options, error) {
	switch {
	case o.Dir == "" || o.BinDir == "" || o.NetNS == "" || o.Group == nil:
		return o, errors.New("start control plane: Dir, BinDir, NetNS and Group are required")
	case !o.Advertise.IsValid():
		return o, errors.New("start control plane: an address to advertise is required")
	}
	if !o.ServiceCIDR.IsValid() {
		o.ServiceCIDR = defaultServiceCIDR
	}
	if !o.PodCIDR.IsValid() {
		o.PodCIDR = defaultPodCIDR
	}
	if o.EtcdURL == "" {
		o.EtcdURL = etcdClientURL
	}
	dir, err := filepath.Abs(o.Dir) // the programs run elsewhere, and kubeconfigs name files by their path
	o.Dir = dir
	return o, err
}

// Cluster is a running control plane.
type Cluster struct {
	opts    Options
	pki     *pki
	kube    *clients
	started []*process.Process
}

// Start starts the control plane and returns once the API server is ready and the controllers are healthy. When it
// fails, what was started is stopped again; the error names the program and quotes the end of its log.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Cluster{opts: opts}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) (err error) {
	for _, dir := range []string{c.path(pkiDir), c.path(logDir), c.path(kubeconfigDir), c.path(tmpDir)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if c.pki, err = newPKI(c.path(pkiDir), c.opts); err != nil {
		return fmt.Errorf("make certificates: %w", err)
	}
	begun := time.Now()
	for _, step := range []func(context.Context) error{
		c.startEtcd, c.startAPIServer, c.startControllers,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	c.opts.Progress.Sayf("control plane is up (%s)", time.Since(begun).Round(100*time.Millisecond))
	return nil
}

// Stop ends the programs of the control plane, the youngest first. Files stay. A stopped cluster cannot be started
// again.
func (c *Cluster) Stop(ctx context.Context) error {
	var errs []error
	for len(c.started) > 0 {
		last := len(c.started) - 1
		errs = append(errs, c.opts.Group.Stop(ctx, c.started[last]))
		c.started = c.started[:last]
	}
	return errors.Join(errs...)
}

// Folders inside Options.Dir.
const (
	pkiDir        = "pki"
	logDir        = "log"
	kubeconfigDir = "kubeconfig"
	tmpDir        = "tmp"
	etcdDir       = "etcd"
)

// path names something inside the cluster's folder.
func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.opts.Dir}, parts...)...)
}

// AuditLog is the path of the API server's audit log, one JSON event per line. It holds every write to virtual
// machines, their instances and pods with the annotations that admission left, which name the webhooks that patched.
func (c *Cluster) AuditLog() string { return c.path(logDir, "audit.log") }

// Log is the path of the log of one of the control plane's programs, such as "kube-apiserver" or "virt-controller".
func (c *Cluster) Log(program string) string { return c.path(logDir, program+".log") }

// URL is where nodes and pods reach the API server.
func (c *Cluster) URL() string {
	return "https://" + netip.AddrPortFrom(c.opts.Advertise, apiServerPort).String()
}

// program is one of the programs in BinDir.
type program struct {
	name  string
	args  []string
	grace time.Duration // zero is process.Spec's default
}

// run starts a program and waits until ready returns nil. Nil does not wait.
func (c *Cluster) run(ctx context.Context, prog program, ready func(context.Context) error) error {
	p, err := c.opts.Group.Start(process.Spec{
		Name: prog.name, Path: filepath.Join(c.opts.BinDir, prog.name), Args: prog.args,
		Dir: c.opts.Dir, NetNS: c.opts.NetNS, Log: c.Log(prog.name), Grace: prog.grace,
		Env: []string{"TMPDIR=" + c.path(tmpDir)},
	})
	if err != nil {
		return err
	}
	c.started = append(c.started, p)
	if ready == nil {
		return nil
	}
	return p.WaitReady(ctx, c.opts.Progress, ready)
}
