package podlink

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat"
)

// Rules are written and read past the library: it knows not all expressions that they need.

func (n *Node) socket() (*netlink.Conn, error) {
	var c netlink.Config
	if n.ns != nil {
		c.NetNS = int(n.ns.Fd())
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &c)
	if err != nil {
		return nil, fmt.Errorf("nftables socket: %w", err)
	}
	return conn, nil
}

// addRules adds the rules of all chains, which exist and are empty, in one transaction.
func (n *Node) addRules(l layout) error {
	conn, err := n.socket()
	if err != nil {
		return err
	}
	defer conn.Close()
	messages := []netlink.Message{batchMessage(unix.NFNL_MSG_BATCH_BEGIN)}
	for _, c := range l.chains {
		for _, r := range c.Rules {
			messages = append(messages, netlink.Message{
				Header: netlink.Header{
					Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE,
					Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Append,
				},
				Data: append([]byte{byte(l.table.Family), unix.NFNETLINK_V0, 0, 0}, attributes(
					netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: []byte(tableName + "\x00")},
					netlink.Attribute{Type: unix.NFTA_RULE_CHAIN, Data: []byte(c.Name + "\x00")},
					netlink.Attribute{Type: unix.NFTA_RULE_EXPRESSIONS | unix.NLA_F_NESTED, Data: r.list()})...),
			})
		}
	}
	if _, err := conn.SendMessages(append(messages, batchMessage(unix.NFNL_MSG_BATCH_END))); err != nil {
		return fmt.Errorf("send rules: %w", err)
	}
	for range len(messages) - 1 { // each rule has its answer
		if _, err := conn.Receive(); err != nil {
			return fmt.Errorf("add rules: %w", err)
		}
	}
	return nil
}

// batchMessage begins or ends a transaction (struct nfgenmsg with the subsystem as its resource).
func batchMessage(kind netlink.HeaderType) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request},
		Data:   []byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
	}
}

// list is the rule's expressions as one attribute.
func (r rule) list() []byte {
	var list []netlink.Attribute
	for _, e := range r.exprs {
		list = append(list, netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: e})
	}
	return attributes(list...)
}

// canonical is what the rule is compared by.
func (r rule) canonical() string {
	text, err := nat.Canonical(r.list())
	if err != nil {
		panic("podlink: rule: " + err.Error()) // a programming mistake
	}
	return text
}

// readRules returns the text of all chains and rules of the table, as layout.text does.
func (n *Node) readRules(conn *nftables.Conn, l layout) (string, error) {
	chains, err := conn.ListChainsOfTableFamily(l.table.Family)
	if err != nil {
		return "", fmt.Errorf("list chains of table %s: %w", tableName, err)
	}
	socket, err := n.socket()
	if err != nil {
		return "", err
	}
	defer socket.Close()
	rules, err := nat.RuleTexts(socket, l.table)
	if err != nil {
		return "", fmt.Errorf("read rules of table %s: %w", tableName, err)
	}
	texts := map[string]string{}
	for _, k := range chains {
		if k.Table.Name != tableName {
			continue
		}
		var hook *nftables.ChainHook
		var priority nftables.ChainPriority
		if k.Hooknum != nil {
			hook, priority = k.Hooknum, *k.Priority
		}
		texts[k.Name] = chainText(k.Name, k.Type, hook, priority, rules[k.Name])
	}
	return joined(texts), nil
}
