// etcd as the tests' control plane needs it: one member, nothing kept safe against a power cut. Ends when it is killed.
package main

import (
	"log"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcd DIRECTORY CLIENT-URL PEER-URL
func main() {
	member := embed.NewConfig()
	member.Dir = os.Args[1]
	client, peer := address(os.Args[2]), address(os.Args[3])
	member.ListenClientUrls, member.AdvertiseClientUrls = client, client
	member.ListenPeerUrls, member.AdvertisePeerUrls = peer, peer
	member.InitialCluster = member.InitialClusterFromName(member.Name)
	member.UnsafeNoFsync = true
	// What the API server asks a watch on a quiet resource: how far it has come.
	member.WatchProgressNotifyInterval = 5 * time.Second
	member.LogLevel = "warn"
	server, err := embed.StartEtcd(member)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(<-server.Err())
}

func address(text string) []url.URL {
	found, err := url.Parse(text)
	if err != nil {
		log.Fatal(err)
	}
	return []url.URL{*found}
}
