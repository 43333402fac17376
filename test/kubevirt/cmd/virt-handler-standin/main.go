// Command virt-handler-standin plays KubeVirt's virt-handler for one node of the rig (package virthandler).
//
// Its machines outlive it: a later process with the same run folder takes them over. To end them, remove their folders
// from the run folder.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"k8s.io/client-go/tools/clientcmd"
	"kubevirt.io/client-go/kubecli"

	"floatip.io/floatip/test/kubevirt/virthandler"
	"floatip.io/floatip/test/kubevirt/virthandler/launcher"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "virt-handler-standin:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if len(os.Args) == 3 && os.Args[1] == launcher.Subcommand {
		return launcher.Run(ctx, launcher.Dir(os.Args[2]))
	}
	var config virthandler.Config
	flag.StringVar(&config.Node, "node", "", "name of the Node object whose instances to run")
	flag.StringVar(&config.KubeletDir, "kubelet-dir", "", "the node's kubelet directory; pods/<uid>/netns leads to a pod's network namespace")
	flag.StringVar(&config.RunDir, "run-dir", "", "folder of the node's machines, one folder by the instance's UID; at most 50 characters, for the sockets in it")
	flag.StringVar(&config.GuestKernel, "guest-kernel", "", "kernel of the rig's guest")
	flag.StringVar(&config.GuestInitrd, "guest-initrd", "", "initramfs of the rig's guest")
	flag.StringVar(&config.Nameserver, "nameserver", "10.96.0.10", "DNS server that guests are told by DHCP")
	kubeconfig := flag.String("kubeconfig", "", "credentials of the service account kubevirt-handler; another's writes to the status are undone")
	virtChroot := flag.String("virt-chroot", "", "KubeVirt's program virt-chroot, which makes tap devices; empty: it is on PATH")
	flag.Parse()
	if *virtChroot != "" {
		if err := os.Setenv("PATH", filepath.Dir(*virtChroot)+":"+os.Getenv("PATH")); err != nil {
			return err
		}
	}
	var err error
	if config.RunDir, err = filepath.Abs(config.RunDir); err != nil {
		return err
	}
	rest, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return fmt.Errorf("read %s: %w", *kubeconfig, err)
	}
	client, err := kubecli.GetKubevirtClientFromRESTConfig(rest)
	if err != nil {
		return err
	}
	log.Printf("node %s, machines in %s", config.Node, config.RunDir)
	return virthandler.New(config, client).Run(ctx)
}
