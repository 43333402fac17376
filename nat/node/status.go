package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node/netns"
)

// NodeStatus is what an agent tells people on its node.
type NodeStatus struct {
	Node     string `json:"node"`
	Revision string `json:"revision"`
	// Round is when the last reconciliation ended, the zero Time before the first one. Problem is why it left something
	// undone.
	Round     time.Time       `json:"round,omitzero"`
	Problem   string          `json:"problem,omitempty"`
	Addresses []AddressStatus `json:"addresses"`
	// NoFastPath is why established connections take the node's ordinary way, "" where they pass it by.
	NoFastPath string `json:"noFastPath,omitempty"`
	// Refused are pods that claim an address which they do not get.
	Refused []RefusedStatus `json:"refused,omitempty"`
}

// AddressStatus is one address of a pod on the node.
type AddressStatus struct {
	Address   netip.Addr `json:"address"`
	Namespace string     `json:"namespace"`
	VM        string     `json:"vm"`
	Pod       string     `json:"pod"`
	Mode      Mode       `json:"mode"`
	// Way is what carries the packets between the node and the pod.
	Way string `json:"way"`
	// Interface is the provider NIC.
	Interface string `json:"interface"`
	// Reason and Message say what is in the way of packets; Reason is "Ready" if nothing is.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Announced is when the address was last announced, the zero Time if this agent has not yet.
	Announced time.Time `json:"announced,omitzero"`
	// Conflict names another host that has or claims the address.
	Conflict string          `json:"conflict,omitempty"`
	In       handover.Figure `json:"in"`
	Out      handover.Figure `json:"out"`
}

// RefusedStatus says why a pod does not get an address.
type RefusedStatus struct {
	Pod     string     `json:"pod"`
	Address netip.Addr `json:"address,omitzero"`
	Reason  string     `json:"reason"`
}

// lines makes the lines of a round's outcome.
func lines(p plan, r Report, t []traffic) []AddressStatus {
	all, counted := []AddressStatus{}, map[netip.Addr]handover.Counter{}
	for _, one := range t {
		counted[one.counter.Floating] = one.counter
	}
	for _, pp := range p.pods {
		for _, a := range pp.grant.Addresses {
			s := r.Statuses[a]
			ready := s.Ready()
			line := AddressStatus{
				Address: a, Namespace: pp.grant.Pod.Namespace, VM: pp.grant.NAT.Owner.Name, Pod: pp.grant.Pod.Name,
				Mode: pp.mode, Way: pp.grant.way(a), Interface: pp.nics[a], Reason: ready.Reason, Message: ready.Message,
			}
			switch s.ConflictFree.Reason {
			case floatip.ReasonAddressTaken, floatip.ReasonAddressContested:
				line.Conflict = s.ConflictFree.Message
			}
			line.In, line.Out = counted[a].In, counted[a].Out
			all = append(all, line)
		}
	}
	slices.SortFunc(all, func(x, y AddressStatus) int { return x.Address.Compare(y.Address) })
	return all
}

// tell keeps what a round found out for those who ask.
func (h *health) tell(lines []AddressStatus, refusals []Refusal, noFastPath, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = NodeStatus{Round: time.Now(), Addresses: lines}
	if err != nil {
		h.status.Problem = err.Error()
	}
	if noFastPath != nil {
		h.status.NoFastPath = noFastPath.Error()
	}
	for _, r := range refusals {
		h.status.Refused = append(h.status.Refused, RefusedStatus{r.Pod.Namespace + "/" + r.Pod.Name, r.Address, r.Reason})
	}
}

// Status returns the outcome of the last round, with announcements of now.
func (a *Agent) Status() NodeStatus {
	a.health.mu.Lock()
	s := a.health.status
	s.Addresses = slices.Clone(s.Addresses)
	a.health.mu.Unlock()
	s.Node, s.Revision = a.Name, floatip.Revision()
	for i, line := range s.Addresses {
		s.Addresses[i].Announced = a.responders.standing(line.Interface, line.Address).Announced
	}
	return s
}

// statusPath of the HTTP server on the agent's socket.
const statusPath = "/status"

// serveStatus answers on the socket that keeps a second agent away, until it is closed. An abstract socket has no mode, so
// the one who asks must be root: other processes of the node's network namespace are none of the agent's business.
func (a *Agent) serveStatus(l net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, r *http.Request) {
		if uid, ok := r.Context().Value(peerKey{}).(uint32); !ok || uid != 0 {
			http.Error(w, "only root may ask the agent", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(a.Status()); err != nil {
			a.Log.Debug("could not answer", "reason", err)
		}
	})
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if uid, err := peerOf(c); err == nil {
				return context.WithValue(ctx, peerKey{}, uid)
			}
			return ctx
		},
	}
	if err := server.Serve(l); !errors.Is(err, net.ErrClosed) {
		a.Log.Info("the status is not served any more", "reason", err)
	}
}

type peerKey struct{}

// peerOf returns the user of the process at the other end, as this process' user namespace knows it (SO_PEERCRED,
// unix(7)).
func peerOf(c net.Conn) (uid uint32, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%T is no unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var get error
	err = raw.Control(func(fd uintptr) { cred, get = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, get); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// AskStatus asks the agent that works in the network namespace, nil for that of the process. It needs root.
func AskStatus(ctx context.Context, ns *os.File) (NodeStatus, error) {
	dial := func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		err = netns.Do(ns, func() error {
			c, err = new(net.Dialer).DialContext(ctx, "unix", lockName)
			return err
		})
		return c, err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+statusPath, nil)
	if err != nil {
		return NodeStatus{}, err
	}
	resp, err := client.Do(req)
	if errors.Is(err, unix.ECONNREFUSED) {
		return NodeStatus{}, errors.New("no floatip-agent works in this network namespace: ask on the node, or with " +
			"kubectl exec in the pod of the DaemonSet floatip-agent")
	}
	if err != nil {
		return NodeStatus{}, fmt.Errorf("ask the agent: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return NodeStatus{}, fmt.Errorf("the agent refuses: %s", strings.TrimSpace(string(text)))
	}
	var s NodeStatus
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return NodeStatus{}, fmt.Errorf("answer of the agent: %w", err)
	}
	return s, nil
}
