# A guest as a host of BackupPC 4: /etc/backuppc/mail01.pl. Its name in `hosts` is that of the guest.

# The machine on which the guest runs.
$Conf{ClientNameAlias} = 'virthost';

# The share is the view itself, not a directory above it: BackupPC does not look into mounts below a share.
$Conf{XferMethod} = 'rsync';
$Conf{RsyncShareName} = ['/var/lib/libvirt/backup/mail01'];

# No view, no backup: when the first command fails, there is nothing to be copied.
$Conf{DumpPreUserCmd} = '$sshPath -q -x -l root $host virt-backup chunkmount $client';
$Conf{DumpPostUserCmd} = '$sshPath -q -x -l root $host virt-backup cleanup $client';
$Conf{UserCmdCheckStatus} = 1;

# An incremental backup reads what has changed. A full one reads everything, and compares it with what is stored.
$Conf{IncrPeriod} = 0.97;
$Conf{FullPeriod} = 90.97;
