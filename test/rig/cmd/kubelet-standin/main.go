// Kubelet-standin runs the pods of one of the rig's nodes. It has to be started in the node's network namespace.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"floatip.io/floatip/test/rig/kubelet"
	"floatip.io/floatip/test/rig/lan"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubelet-standin:", err)
		os.Exit(1)
	}
}

func run() error {
	node := flag.String("node", "", "name of the node")
	lanDir := flag.String("lan", "", "folder with the state of the LAN that the node is part of")
	dir := flag.String("dir", "", "folder of the node on this machine: its kubelet directory and host paths")
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	images := flag.String("images", "", "JSON file with the images that the node has")
	pause := flag.String("pause", "", "static program that plays the containers of all other images")
	restart := flag.Duration("max-restart-period", 0, "longest back-off of restarts, as crashLoopBackOff.maxContainerRestartPeriod of kubelet; 0 is its default")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	network, err := lan.Open(*lanDir)
	if err != nil {
		return err
	}
	known, err := kubelet.ReadImages(*images)
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	k, err := kubelet.New(kubelet.Config{
		Node: *node, LAN: network, Dir: *dir, Images: known, Pause: *pause, Client: client,
		MaxRestartPeriod: *restart, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	return k.Run(ctx)
}
