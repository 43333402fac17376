package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node"
)

// askWithin bounds the question: the agent answers from memory.
const askWithin = 5 * time.Second

// status prints what the agent of this node does, and returns the exit code: 2 for flags that make no sense, 1 for an
// agent that does not answer.
func status(args []string, out io.Writer) int {
	flags := flag.NewFlagSet("floatip-agent status", flag.ContinueOnError)
	format := flags.String("o", "table", "table or json")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if *format != "table" && *format != "json" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "floatip-agent status [-o table|json]")
		return 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	s, err := node.AskStatus(ctx, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, "floatip-agent:", err)
		return 1
	}
	if *format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		err = e.Encode(s)
	} else {
		err = printStatus(out, s, time.Now())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "floatip-agent:", err)
		return 1
	}
	return 0
}

// printStatus writes s for a person. Reasons come below the table: they are sentences.
func printStatus(out io.Writer, s node.NodeStatus, now time.Time) error {
	round := "none yet"
	if !s.Round.IsZero() {
		round = ago(now, s.Round)
	}
	fmt.Fprintf(out, "node %s, revision %s, last round %s\n", s.Node, cmp.Or(s.Revision, "unknown"), round)
	if s.Problem != "" {
		fmt.Fprintf(out, "not everything is in place: %s\n", s.Problem)
	}
	if s.NoFastPath != "" {
		fmt.Fprintf(out, "established connections take the node's ordinary way: %s\n", s.NoFastPath)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ADDRESS\tVM\tPOD\tWAY\tMODE\tSTATE\tNIC\tANNOUNCED\tCONFLICT\tIN\tOUT")
	for _, a := range s.Addresses {
		announced, conflict := "never", "no"
		if !a.Announced.IsZero() {
			announced = ago(now, a.Announced)
		}
		if a.Conflict != "" {
			conflict = "YES"
		}
		fmt.Fprintf(w, "%s\t%s/%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", a.Address, a.Namespace, a.VM, a.Pod, a.Way, a.Mode,
			a.Reason, a.Interface, announced, conflict, figure(a.In), figure(a.Out))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, a := range s.Addresses {
		if a.Reason != "Ready" {
			fmt.Fprintf(out, "%s is not ready: %s\n", a.Address, a.Message)
		}
		if a.Conflict != "" && a.Conflict != a.Message {
			fmt.Fprintf(out, "%s: %s\n", a.Address, a.Conflict)
		}
	}
	for _, r := range s.Refused {
		fmt.Fprintf(out, "refused to pod %s: %s\n", r.Pod, r.Reason)
	}
	return nil
}

func ago(now, then time.Time) string { return now.Sub(then).Round(time.Second).String() + " ago" }

// figure is "123 pkts/4.5 MB".
func figure(f handover.Figure) string {
	bytes, unit := float64(f.Bytes), "B"
	for _, next := range []string{"kB", "MB", "GB", "TB"} {
		if bytes < 1000 {
			break
		}
		bytes, unit = bytes/1000, next
	}
	if unit == "B" {
		return fmt.Sprintf("%d pkts/%d B", f.Packets, f.Bytes)
	}
	return fmt.Sprintf("%d pkts/%.1f %s", f.Packets, bytes, unit)
}
