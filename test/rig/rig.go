package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"floatip.io/floatip/test/rig/cluster"
	"floatip.io/floatip/test/rig/guest"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/rig/reaper"
)

// Options say how to start a rig. The zero value is fine.
type Options struct {
	// Keep lets the rig survive the program that started it, until Down.
	Keep bool
	// Progress hears what is started and waited for. Nil is silence.
	Progress process.Progress
	// Nodes is their number. Defaults to 3; the first also carries the control plane.
	Nodes int
	// RealNodes gives the nodes the real kubelet and containerd (package realnode) instead of the stand-in, and with them
	// the CNI plugin bridge instead of package lan's, which drops foreign addresses.
	RealNodes bool
}

const defaultNodes = 3

// Rig is a running cluster.
type Rig struct {
	// Dir holds everything that the rig writes: logs, kubeconfigs, the nodes' files.
	Dir      string
	LAN      *lan.LAN
	Cluster  *cluster.Cluster
	KubeVirt *cluster.KubeVirt

	opts     Options
	binaries binaries
	runtime  runtime
	guest    guest.Image
	group    *process.Group
	lock     *os.File // held as long as this program uses the rig
	reaper   *reaper.Guard
}

// Start starts a rig and returns once every node is ready and KubeVirt serves. What crashed runs left is removed
// first. After a failure nothing is left, and the error names the part that failed and quotes its log.
func Start(ctx context.Context, opts Options) (_ *Rig, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("start the rig: it makes network namespaces and containers; run it as root")
	}
	if opts.Nodes == 0 {
		opts.Nodes = defaultNodes
	}
	found, err := findBinaries(opts.RealNodes)
	if err != nil {
		return nil, err
	}
	if err := sweep(ctx, dirParent, opts.Progress, crashedOnly); err != nil {
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	r := &Rig{opts: opts, binaries: found}
	r.runtime = standIn{r}
	if opts.RealNodes {
		r.runtime = real{r, map[string]*process.Process{}}
	}
	if err := r.open(dirParent); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Stop(context.WithoutCancel(ctx)))
		}
	}()
	return r, r.start(ctx)
}

// open makes the rig's folder below parent, and has somebody remove the rig should this program be killed, unless it is kept.
func (r *Rig) open(parent string) (err error) {
	if r.Dir, r.lock, err = newDir(parent, r.opts.Keep); err != nil || r.opts.Keep {
		return err
	}
	if r.reaper, err = crashed.Guard(r.Dir); err != nil {
		return errors.Join(err, os.RemoveAll(r.Dir), r.lock.Close())
	}
	return nil
}

func (r *Rig) start(ctx context.Context) error {
	begun := time.Now()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"make the guest's image", r.buildGuest},
		{"make the network", r.startLAN},
		{"start the control plane", r.startCluster},
		{"start the nodes", r.startNodes},
		{"install KubeVirt", r.installKubeVirt},
		{"start virt-handler's stand-ins", r.startHandlers},
		{"wait for the nodes", r.awaitNodes},
	} {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	r.opts.Progress.Sayf("the rig is up (%s)", time.Since(begun).Round(100*time.Millisecond))
	return nil
}

// Stop ends everything and removes it from the machine.
func (r *Rig) Stop(ctx context.Context) error {
	if r.group != nil {
		r.opts.Progress.Sayf("stopping the rig")
		if err := r.group.StopAll(ctx); err != nil {
			return fmt.Errorf("stop the rig: %w", err)
		}
	}
	if err := errors.Join(remove(ctx, r.Dir, nil), r.lock.Close()); err != nil {
		return err
	}
	return r.reaper.Dismiss()
}

func (r *Rig) buildGuest(ctx context.Context) (err error) {
	r.guest, err = guest.Build(ctx, filepath.Join(r.binaries.dir, "guest"))
	return err
}

func (r *Rig) startLAN(context.Context) (err error) {
	if r.group, err = process.NewGroup(filepath.Join(r.Dir, processFile), r.opts.Keep); err != nil {
		return err
	}
	r.LAN, err = lan.Start(r.Dir, r.opts.Nodes)
	return err
}

func (r *Rig) startCluster(ctx context.Context) (err error) {
	first := r.LAN.Nodes[0]
	r.Cluster, err = cluster.Start(ctx, cluster.Options{
		Dir: filepath.Join(r.Dir, "cluster"), BinDir: r.binaries.dir,
		NetNS: first.Namespace, Advertise: lan.APIServer.Addr(),
		ServiceCIDR: lan.Services, PodCIDR: lan.Pods,
		Group: r.group, Progress: r.opts.Progress,
	})
	return err
}

func (r *Rig) installKubeVirt(ctx context.Context) (err error) {
	r.KubeVirt, err = r.Cluster.InstallKubeVirt(ctx)
	return err
}
