// Command floatip-webhook answers the API server's admission requests and keeps the ledger of floating addresses.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"floatip.io/floatip"
)

func main() { os.Exit(run(os.Args[1:])) }

// run returns the exit code: 2 for flags that make no sense, 1 for any other error.
func run(args []string) int {
	if len(args) > 0 && args[0] == "ledger" {
		return runLedger(args[1:], os.Stdin, os.Stdout, os.Stderr)
	}
	c := defaults()
	flags := flag.NewFlagSet("floatip-webhook", flag.ContinueOnError)
	c.register(flags)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	networks, err := c.validate()
	if err != nil {
		fmt.Fprintln(os.Stderr, "floatip-webhook:", err)
		return 2
	}
	log := logr.FromSlogHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.Level(-c.verbosity)}))
	ctrl.SetLogger(log)
	logStart(log, flags)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, c, networks, log); err != nil {
		log.Error(err, "floatip-webhook ends")
		return 1
	}
	return 0
}

// logStart writes revision and flags, so that a log says what it is the log of.
func logStart(log logr.Logger, flags *flag.FlagSet) {
	values := []any{"revision", floatip.Revision()}
	flags.VisitAll(func(f *flag.Flag) { values = append(values, f.Name, f.Value.String()) })
	log.Info("floatip-webhook starts", values...)
}
