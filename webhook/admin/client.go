package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"

	"floatip.io/floatip/ipam"
)

// Client asks the floatip-webhook that listens on a socket. Its methods are those of Book.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a Client that asks at the socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	return &Client{socket: socket, http: &http.Client{Transport: transport}}
}

// Check is Book.Check.
func (c *Client) Check(ctx context.Context) (Report, error) {
	return ask[Report](ctx, c, pathCheck, nil, nil)
}

// History is Book.History.
func (c *Client) History(ctx context.Context, q ipam.Query) (Events, error) {
	return ask[Events](ctx, c, pathHistory, formatQuery(q), nil)
}

// List is Book.List.
func (c *Client) List(ctx context.Context, after netip.Addr, limit int) (Lines, error) {
	return ask[Lines](ctx, c, pathList, formatQuery(ipam.Query{Address: after, Limit: limit}), nil)
}

// Disputes is Book.Disputes.
func (c *Client) Disputes(ctx context.Context) (Disputes, error) {
	return ask[Disputes](ctx, c, pathDisputes, nil, nil)
}

// Resolve is Book.Resolve.
func (c *Client) Resolve(ctx context.Context, address netip.Addr, keep, reason string) (Line, error) {
	return ask[Line](ctx, c, pathResolve, nil, &decision{Address: address, Keep: keep, Reason: reason})
}

// Release is Book.Release.
func (c *Client) Release(ctx context.Context, address netip.Addr, stoppedOn, reason string) (Lines, error) {
	return ask[Lines](ctx, c, pathRelease, nil, &decision{Address: address, StoppedOn: stoppedOn, Reason: reason})
}

// Backup is Book.Backup.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	response, err := c.send(ctx, pathBackup, nil, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(w, response.Body); err != nil {
		return fmt.Errorf("copy the ledger: %w; what was written is not whole", err)
	}
	return nil
}

func ask[T any](ctx context.Context, c *Client, path string, query url.Values, body *decision) (T, error) {
	var into T
	response, err := c.send(ctx, path, query, body)
	if err != nil {
		return into, err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return into, fmt.Errorf("read the answer: %w", err)
	case len(raw) > maxAnswer:
		return into, fmt.Errorf("the answer has more than %d bytes: ask for less, with --limit", maxAnswer)
	}
	if err := json.Unmarshal(raw, &into); err != nil {
		return into, fmt.Errorf("read the answer: %w", err)
	}
	return into, nil
}

// send returns an answer that is no error.
func (c *Client) send(ctx context.Context, path string, query url.Values, body *decision) (*http.Response, error) {
	method, content := http.MethodGet, io.Reader(nil)
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		method, content = http.MethodPost, bytes.NewReader(raw)
	}
	target := url.URL{Scheme: "http", Host: "ledger", Path: path, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, method, target.String(), content)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.explain(err)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	var f failure
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&f); err != nil || f.Error == "" {
		return nil, fmt.Errorf("the webhook answered %s", response.Status)
	}
	return nil, errors.New(f.Error)
}

// explain says what to do where nobody listens.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no floatip-webhook listens on %s: if it has just started, try again in some seconds; else run the "+
			"command in its container (kubectl -n floatip-system exec deploy/floatip-webhook -- /floatip-webhook ledger ...), "+
			"or read a copied file with --file", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s is for the user of the floatip-webhook that made it: run the command as that user", c.socket)
	}
	return err
}
