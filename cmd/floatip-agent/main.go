// Command floatip-agent carries floating addresses to the virtual machines of one node.
//
//	floatip-agent [flags]                   works until it is ended
//	floatip-agent status [-o table|json]    shows what the agent of this node does
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node"
	"floatip.io/floatip/nat/node/cluster"
	"floatip.io/floatip/nat/node/leg"
)

func main() { os.Exit(run(os.Args[1:])) }

// gcPercent has the garbage collected when the heap has grown by a quarter, not by all, since the last time. The agent lives on
// every node and has little to keep; a collection takes some milliseconds of one processor, and nobody waits for it. $GOGC
// says another value.
const gcPercent = 25

// run returns the exit code: 2 for flags that make no sense, 1 for any other error.
func run(args []string) int {
	if len(args) > 0 && args[0] == "status" {
		return status(args[1:], os.Stdout)
	}
	c := defaults()
	flags := flag.NewFlagSet("floatip-agent", flag.ContinueOnError)
	c.register(flags)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	networks, err := c.validate()
	if err != nil {
		fmt.Fprintln(os.Stderr, "floatip-agent:", err)
		return 2
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(node.Parallel, runtime.GOMAXPROCS(0)))
	}
	level := slog.LevelInfo
	if c.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	klog.SetLogger(logr.FromSlogHandler(log.Handler()))
	logStart(log, flags)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := work(ctx, c, networks, log); err != nil {
		log.Error("floatip-agent ends", "error", err)
		return 1
	}
	log.Info("floatip-agent ends; links, routes and rules stay, and the kernel goes on answering")
	return 0
}

// work runs the parts until ctx is done or one of them fails.
func work(ctx context.Context, c config, networks []netip.Prefix, log *slog.Logger) error {
	config, err := apiServer(c.kubeconfig)
	if err != nil {
		return fmt.Errorf("way to the API server: %w", err)
	}
	if c.sysctlDir == "" {
		if c.sysctlDir, err = leg.FindSysctls(); err != nil {
			return err
		}
	}
	var agent *node.Agent
	api, err := cluster.New(config, c.nodeName, func() { agent.Wake() }, log)
	if err != nil {
		return err
	}
	agent, err = node.NewAgent(node.Options{
		Name: c.nodeName, KubeletDir: c.kubeletDir, ClusterNetworks: networks, Sysctls: c.sysctlDir, Log: log,
		PeerAddress: c.peerAddress(), NoFastPath: !c.fastPath,
	}, api, api)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts := []func(context.Context) error{agent.Run, api.Run}
	if c.listen != "" {
		parts = append(parts, func(ctx context.Context) error { return serveHealth(ctx, c.listen, agent) })
	}
	results := make(chan error, len(parts))
	for _, part := range parts {
		go func() {
			results <- part(ctx)
			cancel()
		}()
	}
	var errs []error
	for range parts {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

func apiServer(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		return clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	return rest.InClusterConfig()
}

// logStart writes revision and flags, so that a log says what it is the log of.
func logStart(log *slog.Logger, flags *flag.FlagSet) {
	values := []any{"revision", floatip.Revision()}
	flags.VisitAll(func(f *flag.Flag) { values = append(values, f.Name, f.Value.String()) })
	log.Info("floatip-agent starts", values...)
}
